"""The running service: messages, ports, use cases, adapters, web, wired by `service.bootstrap`."""
