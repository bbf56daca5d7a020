"""The hooks of fleet provisioning: who may have a certificate."""
