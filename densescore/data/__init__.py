"""Images with boxes, and what the paper makes of them: labelled patches."""
