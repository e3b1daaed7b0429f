"""The instant reflector: how likely is it, after every frame, that the task has been achieved, and when to stop."""
