"""What was metered, billed and is missing, invoice by invoice: `flask audit`."""
