"""Attacks: small programs, each of which builds one abuse and runs the product on it.

``python -m tests.attacks.NAME`` ends with 0 and one line when the product held, with 1 when the attack worked.
``tests/attacks/test_attacks.py`` runs them all.

    concat              text named .mp4 that tells FFmpeg to read another video, or a socket
    checkpoint          encoder weights and a training checkpoint that run code when they are unpickled
    external_data       an ONNX graph whose weights lie in another file, by all kinds of paths and suffixes
    bundle_paths        a bundle whose files lead out of it, by paths and by links
    links_out           a folder of videos with links that lead out of it
    npz_bomb            check clips that unpack to gigabytes, or say that they do
    safetensors_header  headers of absurd length, tensors that overlap, leave holes or lie outside
    formula_names       file names and classes that a spreadsheet would run
    html_names          file names and classes that a browser would run, in the report
    terminal_names      file names and classes that would command a terminal

``common.py`` is what they share, ``tiny.py`` makes their bundles.
"""
