"""The checks stand here by subject; :data:`ckpt_transport.testing.conformance.CHECKS` lists them all."""
