"""Drawing input, truth and prediction."""
