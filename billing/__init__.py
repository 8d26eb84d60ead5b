"""What is billed, and where it goes in Stripe."""
