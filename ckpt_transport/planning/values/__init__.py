"""Values are what a plan is made from and made of. They know nothing of how it is made or proved."""
