"""To the Hub: what belongs there, the card, and uploads that survive a break."""
