"""What the service and its stand-in of Stripe say, held against what Stripe publishes."""
