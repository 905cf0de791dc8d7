"""An engine that has an HTTP interface, and the adapter that updates it: see docs/how-to/write-an-engine-adapter.md."""
