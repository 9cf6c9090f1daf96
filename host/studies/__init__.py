"""Studies: experiments from data to picture, each in a folder that an interrupted run goes on from."""
