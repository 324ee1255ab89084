"""The extraction pipeline of this machine: reading threads, the device, a writing thread."""
