"""The tests of the library, and what several of them share."""
