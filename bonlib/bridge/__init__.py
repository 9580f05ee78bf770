"""The methods in other trainers, for models that outgrow the one loop here."""
