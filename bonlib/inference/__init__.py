"""Methods that spend draws: which of given responses is kept."""
