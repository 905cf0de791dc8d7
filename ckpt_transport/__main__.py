"""``python -m ckpt_transport``."""

from ckpt_transport.cli import main

if __name__ == "__main__":
    main()
