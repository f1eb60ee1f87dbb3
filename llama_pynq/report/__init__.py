"""Tables and plots of boards, models and measurements."""
