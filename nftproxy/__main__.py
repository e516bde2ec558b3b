"""`python -m nftproxy`."""

from nftproxy.cli import main

if __name__ == "__main__":
    main()
