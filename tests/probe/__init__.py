"""The probe has to recognise what the stand-in of Stripe is told."""
