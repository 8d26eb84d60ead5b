"""What Stripe's documents leave open, tried out on a sandbox."""
