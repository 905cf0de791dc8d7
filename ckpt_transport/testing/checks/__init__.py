"""The checks, by subject. :data:`ckpt_transport.testing.conformance.CHECKS` lists them all."""
