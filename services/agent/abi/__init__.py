"""The datapath's binary interface: one module per `bpf/lib` header, same structs, same names, same order.

Layouts only, no I/O. A contract test compares every offset with what the compiler made of the C side. Byte order
is converted here and nowhere else.
"""
