"""isobit's PyTorch backend.

Each of these imports what is below it, never what is above or beside it:

    plugin
    backend
    open_module, restore_state, reference_networks
    model
    export
    simulate
    translate
    capture, decompose
    program
"""
