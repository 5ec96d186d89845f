"""What an engine child puts around itself before it may touch a user's file: nothing here needs privileges.

trampoline.py  confines the process it runs in, then becomes the engine
policy.py      what the child may read, write and use up, told by the parent
landlock.py    which files exist for it
seccomp.py     which system calls exist for it
process.py     everything else: it dies with its parent, keeps no capability, has limits

Only the standard library, imported sparingly: these modules run at the start of every child.
"""
