"""Before a long run: does it fit, will it be fast enough, is everything there?"""
