"""objects.py MODULE LABEL PIN_FILE: prints the label of every object on a token, as the PKCS#11 module shows them.

A process of its own: a module reads its configuration once. An object that a crash left half-written in SoftHSM's files
is not shown by the module, and is none.
"""
import ctypes, sys

LABEL = 3


class Attribute(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong)]


def must(function, *arguments):
    code = function(*arguments)
    if code:
        raise SystemExit("%s: 0x%x" % (function.__name__, code))


def main(module, wanted, pin_file):
    library = ctypes.CDLL(module)
    must(library.C_Initialize, None)
    count = ctypes.c_ulong(64)
    slots = (ctypes.c_ulong * 64)()
    must(library.C_GetSlotList, ctypes.c_ubyte(1), slots, ctypes.byref(count))
    for slot in slots[:count.value]:
        info = ctypes.create_string_buffer(1024)
        if library.C_GetTokenInfo(ctypes.c_ulong(slot), info) == 0 and info.raw[:32].decode().strip() == wanted:
            break
    else:
        raise SystemExit("no token " + wanted)
    session = ctypes.c_ulong()
    must(library.C_OpenSession, ctypes.c_ulong(slot), ctypes.c_ulong(4), None, None, ctypes.byref(session))
    with open(pin_file, "rb") as file:
        pin = file.read().strip()
    must(library.C_Login, session, ctypes.c_ulong(1), pin, ctypes.c_ulong(len(pin)))
    must(library.C_FindObjectsInit, session, None, ctypes.c_ulong(0))
    found = (ctypes.c_ulong * 4096)()
    while True:
        must(library.C_FindObjects, session, found, ctypes.c_ulong(4096), ctypes.byref(count))
        if count.value == 0:
            break
        for handle in found[:count.value]:
            text = ctypes.create_string_buffer(256)
            attribute = Attribute(LABEL, ctypes.cast(text, ctypes.c_void_p), 256)
            must(library.C_GetAttributeValue, session, ctypes.c_ulong(handle), ctypes.byref(attribute), ctypes.c_ulong(1))
            print(text.raw[:attribute.length].decode())
    must(library.C_Finalize, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
