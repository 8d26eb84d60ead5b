"""Local stand-ins of Stripe and OpenMeter, for trying and testing only."""
