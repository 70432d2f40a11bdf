"""The models of the zoo: listed, shown, fetched, published."""
