"""What tests, benchmarks and demonstrations share: servers to update, models for them, transports to try."""
