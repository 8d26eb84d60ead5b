"""How it is run: units, images, clusters, alerts; and the check of the image."""
