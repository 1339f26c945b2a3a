"""What a scored image holds, and the forms it is shown and written in."""
