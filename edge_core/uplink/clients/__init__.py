"""Ways to the broker: mqtt, aws, greengrass, file."""
