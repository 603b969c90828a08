"""Networks: references, architectures, weights, and how a teacher is built from them."""
