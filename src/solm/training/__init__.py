"""Group-relative policy optimisation on teacher-forced counterfactual episodes (METHOD section 5)."""
