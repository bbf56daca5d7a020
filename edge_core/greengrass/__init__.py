"""Being a Greengrass component: the nucleus' IPC, the component's configuration, updates, releases side by side.

    launch.py     standard library only: installs releases, starts one, falls back; runs before anything else of ours
    ipc.py        one connection to the nucleus through awsiotsdk, every call with a limit of our own
    settings.py   the component configuration
    restarts.py   when the process may end so that the nucleus starts it anew
    updates.py    answers every update notice from a thread that cannot block
    recipes.py    our lint of recipes: what both nuclei take
    build.py      artifacts and recipes at the desk

Which nucleus runs is never asked: each operation is tried, and what it answers is a capability.
"""
