"""From the journal to the broker, and the cloud's acks back."""
