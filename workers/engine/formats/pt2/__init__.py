"""A .pt2 file (torch.export.save) read by rules of our own, because torch's reader runs what an attacker wrote into it.

archive.py    the zip: which records it may hold, how large; nothing is unpacked or unpickled
fields.py     the program's JSON, field by field, by the types of torch's own schema
texts.py      a rule for every string in it: names, expressions, devices, structure
operators.py  which operators a program may call
weights.py    tensors over the bytes of their records

Only what passes all of them is given to torch: typed fields and tensors, never the file.
"""
