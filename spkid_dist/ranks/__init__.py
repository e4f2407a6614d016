"""Let the processes of a launch act as one: how they meet, what they print, what one of them does for all."""
