/* nvrtc.c - a compiler that says only which it is, and, by its other name, the part that it would open by that name. */

int nvrtcVersion(int *major, int *minor);

int
nvrtcVersion(int *major, int *minor)
{
    *major = 13;
    *minor = 7;
    return 0;
}
