// Error ellipses as rings on the WGS84 ellipsoid.

const { WGS84, LATITUDE, LONGITUDE, LONG_UNROLL } = geodesic.Geodesic;
const WANTED = LATITUDE | LONGITUDE | LONG_UNROLL;
const POINTS = 128;

/**
 * The ellipse of a fix as [[latitude, longitude], …], open, degrees. Longitudes run on beyond ±180.
 * Every point lies at its distance from the position along the geodesic in its direction.
 */
export function ellipseRing({ latitude, longitude }, { semi_major_m, semi_minor_m, azimuth_deg }) {
  const ring = new Array(POINTS);
  for (let k = 0; k < POINTS; k++) {
    const angle = (2 * Math.PI * k) / POINTS;
    const along = semi_major_m * Math.cos(angle);
    const across = semi_minor_m * Math.sin(angle);
    const azimuth = azimuth_deg + (Math.atan2(across, along) * 180) / Math.PI;
    const point = WGS84.Direct(latitude, longitude, azimuth, Math.hypot(along, across), WANTED);
    ring[k] = [point.lat2, point.lon2];
  }
  return ring;
}

/** Where somebody who leaves a position with `speed_mps` towards `course_deg` is after so many seconds. */
export function placeAhead({ latitude, longitude }, { speed_mps, course_deg }, seconds) {
  const point = WGS84.Direct(latitude, longitude, course_deg, speed_mps * seconds, WANTED);
  return { latitude: point.lat2, longitude: point.lon2 };
}

/** `longitude` plus whole turns, as near as can be to `reference`. */
export function nearestLongitude(longitude, reference) {
  return longitude + 360 * Math.round((reference - longitude) / 360);
}
