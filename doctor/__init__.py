"""Whether all that the service needs is as it has to be, without writing anything."""
