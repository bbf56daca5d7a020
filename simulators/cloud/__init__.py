"""The local cloud: cloud/template.yaml deployed into MiniStack, a local AWS in a process of its own.

It lives beside the other simulators because it stands for something that is not ours at the desk: the product reaches
it by the command line only (`opendcu cloud local`, `opendcu demo`). The gateway connects to it exactly as to AWS.
"""

from simulators.cloud.assets import CloudError, template_text
from simulators.cloud.lake import Identity, Stored, Value
from simulators.cloud.local import LocalCloud

__all__ = ["CloudError", "Identity", "LocalCloud", "Stored", "Value", "template_text"]
