"""RDMA devices: which there are, which are near, and what a transport over them can count on. For plugins."""
