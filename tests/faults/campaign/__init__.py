"""Random participants of real updates are killed, stopped and interrupted at random moments; what must hold after that.

``make campaign`` runs it for as long as somebody likes, ``tests/faults/test_campaign.py`` a few rounds of it.
"""
