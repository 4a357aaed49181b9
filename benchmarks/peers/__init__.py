"""Our credential cache and others, under the same attacks.

`arena` runs one contender in one experiment, in the environment that it needs; `contenders` says
how each is used; `experiments` is what is done to them; `control_plane` is who they all ask.
"""
