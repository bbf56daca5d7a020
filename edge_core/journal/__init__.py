"""The durable middle: what was acquired and is not yet stored in the cloud, and what is known of every gap."""
