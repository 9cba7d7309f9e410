"""`make demo`: a simulated shop whose truth is known, or a public data set whose books must balance."""
