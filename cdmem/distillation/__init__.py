"""Ways to make a student from a teacher."""
