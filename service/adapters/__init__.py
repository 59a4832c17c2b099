"""What implements the ports: Redis or Valkey, and memory."""
