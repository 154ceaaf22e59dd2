"""What a teacher needs: the pages of a class, its routes, and timetables made of the minutes that the pages need.

``python -m course.classroom`` writes the pages of a class into a folder.
"""
