"""`nftproxy page`: the Services of this node in a browser, to look at and never to change.

    rates       how fast counters grow, from two readings
    charts      sparklines and bars, as points
    drawing     a path as a picture
    meter       one reading of the counters, for everybody who looks
    rendering   the templates, with every text escaped
    site        which address shows what, and the headers of all answers

Everything comes from this process: a strict content policy forbids anything else. A page is
complete without JavaScript; with it, figures move.
"""
