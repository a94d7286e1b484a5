"""Lightning modules of the teacher and the student."""
